import type { Runners } from '../harness';
import { blockwise } from './blockwise';
import { dequantization } from './dequantize';
import { float8 } from './float8';
import { integerGrid } from './integer_grid';
import { moeLayout } from './moe_layout';
import { mx } from './mx';
import { rotation } from './rotation';

/** Every op that has a runner. */
export const allRunners: Runners = {
  ...integerGrid,
  ...blockwise,
  ...mx,
  ...float8,
  ...moeLayout,
  ...dequantization,
  ...rotation,
};
