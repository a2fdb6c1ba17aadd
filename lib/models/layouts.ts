import type { Layout, Piece } from './types';

/** The three matrices of a gated expert: `down(silu(gate x) * (up x))`. */
export type Projection = 'gate' | 'up' | 'down';
export const PROJECTIONS: readonly Projection[] = ['gate', 'up', 'down'];

/**
 * The form of transformers v5's fused parameters, which two families keep in another orientation than the
 * rest.
 */
export interface FusedForm {
  /** `[E, in, out]` instead of `[E, out, in]`. */
  transposed: boolean;
  /** Gate and up rows alternate instead of all gate rows coming first. */
  interleaved: boolean;
}

/** How a family names routed experts inside `layers.N.`. */
export interface ExpertNaming {
  /** Module of one projection, with `{expert}` and `{projection}`. */
  sequential: string;
  /** What `{projection}` stands for. */
  projections: Record<Projection, string>;
  fused: FusedForm;
}

/** Names of the stacks inside the module of the experts. */
export const GROUPED_NAMES: Record<Projection, string> = {
  gate: 'fc1.weight',
  up: 'fc1.weight',
  down: 'fc2.weight',
};
export const FUSED_NAMES: Record<Projection, string> = {
  gate: 'gate_up_proj',
  up: 'gate_up_proj',
  down: 'down_proj',
};

/** The routed experts of one layer: gate and up are `[width, hidden]`, down is `[hidden, width]`. */
export interface ExpertBlock {
  experts: number;
  hidden: number;
  width: number;
  fused: FusedForm;
  /** Name of the tensor that holds this projection; stacks have one name for all experts. */
  tensorOf: (expert: number, projection: Projection) => string;
}

/** One layout: which tensors a block is stored in, and where in them each expert's matrix lies. */
export interface ExpertLayout {
  tensors(block: ExpertBlock): { name: string; shape: number[] }[];
  piece(block: ExpertBlock, expert: number, projection: Projection): Piece;
}

const rowsOf = (block: ExpertBlock, projection: Projection) =>
  projection === 'down' ? block.hidden : block.width;

/** One `[out, in]` tensor for each projection of each expert. */
const sequential: ExpertLayout = {
  tensors(block) {
    const { experts, hidden, width } = block;
    return Array.from({ length: experts }, (_, expert) =>
      PROJECTIONS.map((projection) => ({
        name: block.tensorOf(expert, projection),
        shape: projection === 'down' ? [hidden, width] : [width, hidden],
      })),
    ).flat();
  },
  piece(block, expert, projection) {
    const end = rowsOf(block, projection);
    return {
      tensor: block.tensorOf(expert, projection),
      expert: null,
      start: 0,
      end,
      step: 1,
      transposed: false,
    };
  },
};

/** Two stacks: gate and up share one, `form` says which way round; down has the other. */
function stacked(formOf: (block: ExpertBlock) => FusedForm): ExpertLayout {
  return {
    tensors(block) {
      const { experts, hidden, width } = block;
      const { transposed } = formOf(block);
      return [
        {
          name: block.tensorOf(0, 'gate'),
          shape: transposed ? [experts, hidden, 2 * width] : [experts, 2 * width, hidden],
        },
        {
          name: block.tensorOf(0, 'down'),
          shape: transposed ? [experts, width, hidden] : [experts, hidden, width],
        },
      ];
    },
    piece(block, expert, projection) {
      const { transposed, interleaved } = formOf(block);
      const place = { tensor: block.tensorOf(expert, projection), expert, transposed };
      if (projection === 'down') return { ...place, start: 0, end: block.hidden, step: 1 };
      const second = projection === 'up';
      if (interleaved) return { ...place, start: second ? 1 : 0, end: 2 * block.width, step: 2 };
      const start = second ? block.width : 0;
      return { ...place, start, end: start + block.width, step: 1 };
    },
  };
}

export const expertLayouts: Record<Layout, ExpertLayout> = {
  sequential,
  grouped: stacked(() => ({ transposed: true, interleaved: false })),
  fused: stacked((block) => block.fused),
};

/** Fills a template such as `mlp.experts.{expert}.{projection}`. */
export function fillTemplate(template: string, expert: number, projection: string): string {
  return template.replace('{expert}', String(expert)).replace('{projection}', projection);
}
