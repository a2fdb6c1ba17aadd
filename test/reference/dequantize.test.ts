import { referenceTests } from './harness';
import { dequantization } from './runners/dequantize';

referenceTests('dequantization', dequantization);
