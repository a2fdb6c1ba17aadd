import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { isMissing } from '../checkpoint/json_file';
import { indexOf, type ShardLayout } from '../checkpoint/layout';
import { INDEX_FILE } from '../checkpoint/reader';
import type { FileContent } from '../checkpoint/writer';

/**
 * Whether a directory holds a job's output as planned: every shard with its header and all its bytes, the index, and the
 * files beside them; of those that are copies, the size is looked at.
 */
export async function isComplete(
  directory: string,
  shards: readonly ShardLayout[],
  files: Readonly<Record<string, FileContent>>,
): Promise<boolean> {
  const index = indexOf(shards);
  const beside = Object.entries({ ...files, ...(index === null ? {} : { [INDEX_FILE]: index }) });
  try {
    for (const shard of shards) {
      if (!(await isShard(path.join(directory, shard.file), shard))) return false;
    }
    for (const [name, content] of beside) {
      if (!(await isContent(path.join(directory, name), content))) return false;
    }
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

async function isShard(file: string, { header, bytes }: ShardLayout): Promise<boolean> {
  const handle = await fs.open(file, 'r');
  try {
    const found = Buffer.alloc(header.length);
    await handle.read(found, 0, found.length, 0);
    return found.equals(header) && (await handle.stat()).size === bytes;
  } finally {
    await handle.close();
  }
}

async function isContent(file: string, content: FileContent): Promise<boolean> {
  if (typeof content === 'string') return (await fs.readFile(file, 'utf8')) === content;
  return (await fs.stat(file)).size === (await fs.stat(content.copyOf)).size;
}
