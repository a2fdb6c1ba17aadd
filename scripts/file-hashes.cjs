'use strict';

const { createHash } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

/** SHA-256 of what lies below a directory, by paths in it; of directories and of report.html, which has times of its run, that they are there. */
function fileHashes(directory) {
  const found = {};
  for (const name of fs.readdirSync(directory, { recursive: true }).sort()) {
    const file = path.join(directory, name);
    if (fs.statSync(file).isDirectory()) {
      found[name] = 'directory';
      continue;
    }
    if (name === 'report.html') {
      found[name] = 'a page with times of its run';
      continue;
    }
    const hash = createHash('sha256');
    const fd = fs.openSync(file, 'r');
    const part = Buffer.alloc(1 << 20);
    for (let n = fs.readSync(fd, part); n > 0; n = fs.readSync(fd, part)) hash.update(part.subarray(0, n));
    fs.closeSync(fd);
    found[name] = hash.digest('hex');
  }
  return found;
}

module.exports = { fileHashes };
