import { referenceTests } from './harness';
import { moeLayout } from './runners/moe_layout';

referenceTests('expert layouts', moeLayout);
