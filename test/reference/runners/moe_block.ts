import { linear, moe, Tensor } from '../../../lib';
import type { Values } from '../compare';
import { type Check, mapValues, type Runner, type Runners, valuesOf } from '../harness';

/** x [tokens, hidden] times the router's weight [E, hidden], transposed, in float64. */
function logitsOf(x: Values, router: Values): Values {
  const [experts, hidden] = router.shape as [number, number];
  const tokens = x.data.length / hidden;
  const data = new Float64Array(tokens * experts);
  for (let i = 0; i < data.length; i++) {
    const [t, e] = [Math.floor(i / experts), i % experts];
    for (let h = 0; h < hidden; h++)
      data[i] =
        (data[i] as number) + (x.data[t * hidden + h] as number) * (router.data[e * hidden + h] as number);
  }
  return { shape: [tokens, experts], data };
}

/** The expert that every token goes through: silu(gate x) * (up x) by the test, the products by the library. */
async function sharedOf(check: Check, x: Tensor): Promise<Values> {
  const gate = await valuesOf(linear(x, await check.input('shared_gate')));
  const up = await valuesOf(linear(x, await check.input('shared_up')));
  const activated = mapValues(gate, (g, i) => (g / (1 + Math.exp(-g))) * (up.data[i] as number));
  const between = Tensor.from(activated.data, [...activated.shape]);
  return valuesOf(linear(between, await check.input('shared_down')));
}

/** An expert block: what the router decides, the experts that it chooses, stacked and one by one, and the shared one. */
const ariaMoe: Runner = {
  async run(check) {
    const logits = logitsOf(await check.values('x'), await check.values('router_weight'));
    await check.output('router_logits', logits);
    const rounded = Tensor.from(Float32Array.from(logits.data), [...logits.shape]);
    const routing = moe.route(rounded, { topK: check.param('top_k'), order: 'topk-softmax' });
    await check.output('top_k_index', routing.indices);
    await check.output('top_k_weight', routing.weights);
    await check.output('tokens_per_expert', routing.counts);
    // No two logits of a token are close: the order is given, too, and all probabilities, normalised, are the weights.
    await check.also('top_k_index in order', routing.indices, await check.values('top_k_index'), {
      mode: 'exact',
    });
    const other = moe.route(rounded, {
      topK: check.param('top_k'),
      order: 'softmax-topk',
      normalize: true,
      scale: 2.5,
    });
    await check.output(
      'top_k_weight',
      mapValues(await valuesOf(other.weights), (weight) => weight / 2.5),
    );
    const recorded = await check.input('x');
    const tokens = recorded.reshape([-1, recorded.shape.at(-1) as number]);
    const stacks = { fc1: await check.input('fc1'), fc2: await check.input('fc2') };
    const routed = await valuesOf(moe.experts(tokens, stacks, routing));
    await check.output('routed', routed);
    const list = moe.groupedToSequential(stacks.fc1, stacks.fc2);
    await check.also('routed one by one', moe.experts(tokens, list, routing), routed, { mode: 'exact' });
    const shared = await sharedOf(check, tokens);
    await check.output('shared', shared);
    await check.output('y', {
      shape: recorded.shape,
      data: mapValues(routed, (value, i) => value + (shared.data[i] as number)).data,
    });
  },
};

export const moeBlock: Runners = { aria_moe: ariaMoe };
