import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { join, relative } from 'node:path';
import { expect, test } from 'vitest';

const root = join(__dirname, '..', '..');
const read = (file: string) => readFileSync(join(root, file), 'utf8');
const manifest = JSON.parse(read('package.json')) as {
  version: string;
  dependencies: Record<string, string>;
};

function packedFiles(): string[] {
  const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const [tarball] = JSON.parse(execFileSync('npm', args, { cwd: root, encoding: 'utf8' })) as [
    { files: { path: string }[] },
  ];
  return tarball.files.map((file) => file.path);
}

/** The files below a folder of the repository, named from its root. */
function filesIn(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

const packed = packedFiles();

test('the package holds every file that a build from source reads', () => {
  const cmake = ['CMakeLists.txt', ...filesIn('cmake')];
  const scriptsRunByCmake = cmake.flatMap((file) => read(file).match(/scripts\/[\w-]+\.cjs(?= \$)/g) ?? []);
  const needed = [
    'LICENSE',
    'binding.gyp',
    'scripts/install.cjs',
    ...cmake,
    ...filesIn('csrc'),
    ...scriptsRunByCmake,
  ];
  expect(needed.filter((file) => !packed.includes(file))).toEqual([]);
});

test('what the packed scripts require is in the package too', () => {
  const required = packed
    .filter((file) => /^scripts\/.*\.cjs$/.test(file))
    .flatMap((file) =>
      [...read(file).matchAll(/require\('\.\/([^']+)'\)/g)].map((match) => `scripts/${match[1]}`),
    );
  expect(required).toContain('scripts/cmake.cjs');
  expect(required.filter((file) => !packed.includes(file))).toEqual([]);
});

test('compiled code requires nothing but dependencies of the package', () => {
  const packages = packed
    .filter((file) => /^dist\/.*\.js$/.test(file))
    .flatMap((file) =>
      [...read(file).matchAll(/\brequire\("([^."][^"]*)"\)/g)].map((match) => match[1] ?? ''),
    )
    .filter((name) => !isBuiltin(name));
  expect([...new Set(packages)].filter((name) => !(name in manifest.dependencies))).toEqual([]);
});

test('the package holds no sources of tests and no stale folders', () => {
  const folders = new Set(packed.filter((file) => file.includes('/')).map((file) => file.split('/')[0]));
  expect(
    [...folders].filter((folder) => !/^(cmake|csrc|dist|prebuilds|scripts)$/.test(folder ?? '')),
  ).toEqual([]);
});

const prebuild = 'prebuilds/linux-x64/quantaria.node';

test.skipIf(!existsSync(join(root, prebuild)))('the prebuilt binary needs no glibc above 2.28', () => {
  const said = execFileSync(process.execPath, ['scripts/check-glibc.cjs', prebuild], {
    cwd: root,
    encoding: 'utf8',
  });
  expect(said).toMatch(/needs glibc 2\.(\d|1\d|2[0-8]),/);
});

test.skipIf(!existsSync(join(root, prebuild)))(
  'the prebuilt binary exports nothing but what Node looks up',
  () => {
    const table = execFileSync('nm', ['-D', '--defined-only', prebuild], { cwd: root, encoding: 'utf8' });
    const names = table
      .trim()
      .split('\n')
      .map((line) => line.replace(/^\S+ \S /, ''))
      .sort();
    expect(names).toEqual(['node_api_module_get_api_version_v1', 'napi_register_module_v1'].sort());
  },
);
