import { groupedToSequential, sequentialToGrouped } from '../../../lib/ops/moe';
import type { Runner, Runners } from '../harness';

/** The three linear weights of each expert, cut from the stacks; and the stacks, put together again. */
const groupedToLinear: Runner = {
  async run(check) {
    const [fc1, fc2] = [await check.input('fc1'), await check.input('fc2')];
    const experts = groupedToSequential(fc1, fc2);
    await check.also(
      'number of experts',
      { shape: [1], data: [experts.length] },
      { shape: [1], data: [check.param<number>('num_experts')] },
      { mode: 'exact' },
    );
    for (const [e, expert] of experts.entries()) {
      await check.output(`expert${e}.gate`, expert.gate);
      await check.output(`expert${e}.up`, expert.up);
      await check.output(`expert${e}.down`, expert.down);
    }
    const grouped = sequentialToGrouped(experts);
    await check.also('fc1', grouped.fc1, await check.values('fc1'), { mode: 'exact' });
    await check.also('fc2', grouped.fc2, await check.values('fc2'), { mode: 'exact' });
  },
};

export const moeLayout: Runners = { aria_grouped_to_linear: groupedToLinear };
