import { referenceTests } from './harness';
import { blockwise } from './runners/blockwise';

referenceTests('code books over flat blocks', blockwise);
