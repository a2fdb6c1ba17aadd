import { referenceTests } from './harness';
import { mx } from './runners/mx';

referenceTests('microscaling', mx);
