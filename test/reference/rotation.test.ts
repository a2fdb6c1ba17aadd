import { referenceTests } from './harness';
import { rotation } from './runners/rotation';

referenceTests('rotations', rotation);
