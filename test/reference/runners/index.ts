import type { Runners } from '../harness';
import { blockwise } from './blockwise';
import { dequantization } from './dequantize';
import { float8 } from './float8';
import { gptqCases } from './gptq';
import { integerGrid } from './integer_grid';
import { llmInt8Cases } from './llm_int8';
import { moeBlock } from './moe_block';
import { moeLayout } from './moe_layout';
import { mx } from './mx';
import { rotation } from './rotation';
import { scalingCases } from './scaling';

/** Every op that has a runner. */
export const allRunners: Runners = {
  ...integerGrid,
  ...blockwise,
  ...mx,
  ...float8,
  ...llmInt8Cases,
  ...moeBlock,
  ...moeLayout,
  ...dequantization,
  ...gptqCases,
  ...rotation,
  ...scalingCases,
};
