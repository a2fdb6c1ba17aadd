import { referenceTests } from './harness';
import { moeBlock } from './runners/moe_block';

referenceTests('expert blocks', moeBlock);
