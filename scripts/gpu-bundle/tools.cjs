'use strict';
// How the bundle's parts are started: by the clock, in an environment without surprises, with what they said.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..', '..');
const MOST_TEXT = 20_000; // of what a tool says, in the results

/** When all has to be done; what is begun is given no longer than is left. */
class Clock {
  #end;

  constructor(minutes) {
    this.#end = Date.now() + minutes * 60e3;
  }

  /** Milliseconds, at most so many minutes of them; none are left at 0. */
  left(minutes = Number.POSITIVE_INFINITY) {
    return Math.max(0, Math.min(this.#end - Date.now(), minutes * 60e3));
  }
}

/**
 * One process. A kernel that never ends would hold it for ever, so it is killed after `timeout` milliseconds; a device that it
 * held is free again then.
 */
function start(command, args, { env = {}, timeout }) {
  if (timeout < 1000) return { ok: false, late: true, stdout: '', stderr: '', why: 'the time is up' };
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
    maxBuffer: 1 << 28,
    timeout,
    killSignal: 'SIGKILL',
  });
  const late = error?.code === 'ETIMEDOUT';
  const why = late
    ? `it was ended after ${Math.round(timeout / 1000)} seconds`
    : signal
      ? `it died of ${signal}`
      : error && error.code !== 'ENOENT'
        ? error.message
        : null;
  return {
    ok: status === 0,
    status,
    late,
    why,
    stdout: stdout ?? '',
    stderr: stderr ?? '',
    missing: error?.code === 'ENOENT',
  };
}

const tail = (text) => text.slice(-MOST_TEXT);

/** What is said of a process that went wrong. */
const saidBy = ({ why, status, stdout, stderr }) =>
  tail(`${why ?? `exit code ${status}`}\n${stdout}${stderr}`);

/** Where a tool of CUDA's lies: its folder is on few people's PATH. */
function cudaTool(name) {
  const homes = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda', '/opt/cuda'];
  const places = [
    ...(process.env.PATH ?? '').split(path.delimiter),
    ...homes.filter(Boolean).map((home) => path.join(home, 'bin')),
  ];
  return (
    places
      .filter(Boolean)
      .map((folder) => path.join(folder, name))
      .find((file) => fs.existsSync(file)) ?? null
  );
}

/** Clocks, power limit and mode of the GPUs, by the driver's tool; null where it is not installed. */
function driverFacts() {
  const fields = [
    'index,name,driver_version,compute_mode,mig.mode.current,persistence_mode,power.limit,clocks.sm,clocks.max.sm',
    'clocks.mem,clocks.max.mem,temperature.gpu,utilization.gpu,memory.used',
  ].join(',');
  const run = start('nvidia-smi', [`--query-gpu=${fields}`, '--format=csv'], { timeout: 30_000 });
  return run.ok ? run.stdout.trim().split('\n') : null;
}

module.exports = { Clock, cudaTool, driverFacts, root, saidBy, start, tail };
