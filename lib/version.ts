import * as path from 'node:path';

/** This package's version. */
export const version: string = (require(path.join(__dirname, '..', 'package.json')) as { version: string })
  .version;
