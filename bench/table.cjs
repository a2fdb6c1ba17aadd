'use strict';
// One table of what was measured: ours, the fastest peer, the machine's ceiling, the goal, and how near it is.
//   node bench/table.cjs RESULTS.json     exits with 1 if even the best repetition is below half of a goal
// Where no peer of a goal ran, the share of a ceiling that it once reached on such a machine stands in, marked *.

const fs = require('node:fs');
const { goals } = require('./goals.json');

const labelOf = ({ name, compute, shape, m }) => `${name} ${compute} ${shape.join('x')} m=${m}`;

/** What a rate of the ceiling's kind counts. */
const amountOf = (row, ceiling) => (['read', 'copy'].includes(ceiling) ? row.bytes : row.operations);

const fits = (wanted, value) => wanted === undefined || [wanted].flat().includes(value);
const sameShape = (a, b) => a.join() === b.join();

/** Our rows for each case and shape of a goal; the fastest of those that it lets choose from. */
function candidates(goal, rows) {
  const best = new Map();
  for (const row of rows) {
    const isMeant =
      row.kind === 'ours' &&
      goal.cases.includes(row.name) &&
      fits(goal.compute, row.compute) &&
      fits(goal.m, row.m) &&
      (goal.shapes === undefined || goal.shapes.some((shape) => sameShape(shape, row.shape)));
    if (!isMeant) continue;
    const key = `${row.name} ${row.shape} ${row.m}`;
    if (!best.has(key) || row.median < best.get(key).median) best.set(key, row);
  }
  return [...best.values()];
}

/** The fastest peer's seconds for the same work. */
function fastestPeer({ names, recorded }, own, rows) {
  const ran = rows.filter(
    (row) =>
      row.kind === 'peer' && names.includes(row.name) && row.m === own.m && sameShape(row.shape, own.shape),
  );
  const measured = ran.map((row) => ({ name: row.name, seconds: row.median }));
  const remembered = (recorded ?? [])
    .filter(
      ({ peer }) => !ran.some((row) => row.name === peer) && (ran.length === 0 || !names.includes(peer)),
    )
    .map(({ peer, share, of }) => ({
      name: `${peer}*`,
      seconds: amountOf(own, of) / (share * own.ceilings[of]),
    }));
  return [...measured, ...remembered].sort((a, b) => a.seconds - b.seconds)[0] ?? null;
}

/** Each thing that a goal asks of a row: what it is, and reached / wanted. */
function demands(goal, row, rows) {
  const found = [];
  if (goal.share) {
    const { of, least } = goal.share;
    const share = amountOf(row, of) / row.median / row.ceilings[of];
    found.push({ text: `${percent(share)} of ${of}, goal ${percent(least)}`, ratio: share / least });
  }
  if (goal.peers) {
    const peer = fastestPeer(goal.peers, row, rows);
    if (peer) {
      const speed = peer.seconds / row.median;
      const text = `${speed.toFixed(2)} x ${peer.name} (${time(peer.seconds)}), goal ${goal.peers.least}`;
      found.push({ text, ratio: speed / goal.peers.least });
    }
  }
  if (goal.seconds) found.push({ text: `goal ${time(goal.seconds)}`, ratio: goal.seconds / row.median });
  if (goal.operationsPerSecond) {
    const rate = row.operations / row.median;
    found.push({
      text: `${(rate / 1e9).toFixed(0)} GOP/s, goal ${goal.operationsPerSecond / 1e9}`,
      ratio: rate / goal.operationsPerSecond,
    });
  }
  return found;
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const time = (seconds) =>
  seconds < 1e-3 ? `${(seconds * 1e6).toFixed(0)} us` : `${(seconds * 1e3).toFixed(2)} ms`;
const rates = ({ bytes, operations, median }) =>
  operations > 50 * bytes
    ? `${(operations / median / 1e9).toFixed(0)} GOP/s`
    : `${(bytes / median / 1e9).toFixed(1)} GB/s`;

/** Prints the table. @returns whether every goal that was measured is reached by half at least */
function report({ date, machine, threads, rows }) {
  console.log(`${machine}; ${threads} threads; ${date}`);
  const ceilings = rows.map((row) => row.ceilings);
  for (const name of Object.keys(ceilings[0] ?? {})) {
    const all = ceilings.map((ceiling) => ceiling[name] / 1e9).sort((a, b) => a - b);
    const unit = ['read', 'copy'].includes(name) ? 'GB/s' : 'GOP/s';
    console.log(`ceiling ${name}: ${all[0].toFixed(0)} to ${all.at(-1).toFixed(0)} ${unit}`);
  }
  const lines = [['operation', 'median', 'best', 'rate', 'against', 'reached / goal']];
  const told = new Set();
  let enough = true;
  for (const goal of goals) {
    for (const row of candidates(goal, rows)) {
      // Neighbours may take half of the machine from a median; a kernel that is broken is slow at its best, too.
      const atBest = demands(goal, { ...row, median: row.best }, rows);
      for (const [i, { text, ratio }] of demands(goal, row, rows).entries()) {
        told.add(row);
        const isBroken = atBest[i].ratio < 0.5;
        const verdict = isBroken ? 'under half' : ratio < 1 ? 'missed' : 'reached';
        if (isBroken) enough = false;
        lines.push([
          labelOf(row),
          time(row.median),
          time(row.best),
          rates(row),
          text,
          `${ratio.toFixed(2)} ${verdict}`,
        ]);
      }
    }
  }
  for (const row of rows) {
    if (told.has(row)) continue;
    lines.push([
      labelOf(row),
      time(row.median),
      time(row.best),
      rates(row),
      '',
      row.kind === 'peer' ? 'peer' : '',
    ]);
  }
  const widths = lines[0].map((_, i) => Math.max(...lines.map((line) => line[i].length)));
  for (const line of lines)
    console.log(
      line
        .map((cell, i) => cell.padEnd(widths[i]))
        .join('  ')
        .trimEnd(),
    );
  if (!enough) console.error('error: below half of a goal, at the best repetition');
  return enough;
}

if (require.main === module) {
  if (!report(JSON.parse(fs.readFileSync(process.argv[2], 'utf8')))) process.exitCode = 1;
}

module.exports = { labelOf, report };
