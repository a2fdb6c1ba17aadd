export { describeModel } from './describe';
export { diskName, type LayoutOptions, layoutTensors, loaderName } from './relayout';
export * from './types';
