import { referenceTests } from './harness';
import { float8 } from './runners/float8';

referenceTests('float8', float8);
