import { referenceTests } from './harness';
import { scalingCases } from './runners/scaling';

referenceTests('scaling', scalingCases);
