import { setDefaultDevice } from '../lib';
import { DEVICE } from './device';

setDefaultDevice(DEVICE);
