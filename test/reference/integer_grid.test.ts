import { referenceTests } from './harness';
import { integerGrid } from './runners/integer_grid';

referenceTests('integer grids', integerGrid);
