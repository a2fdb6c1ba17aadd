/** The 16 values of NF4, code 0 to 15. Source: QLoRA, arXiv 2305.14314; the figures are bitsandbytes'. */
export const nf4Map = Float32Array.of(
  -1,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1,
);

const FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4];

/** bitsandbytes' 4-bit float by bit pattern, sign in bit 3; both zeros are stored as +0. It is not OCP's E2M1. */
export const fp4Map = Float32Array.from([...FP4, ...FP4.map((value) => (value === 0 ? 0 : -value))]);

/**
 * The signed 8-bit dynamic map: seven decades, 2^e midpoints of [0.1, 1] in decade e, both signs, 0 and 1. Every step is
 * rounded as the reference's float32 arithmetic (torch.linspace from both ends) rounds it.
 */
export const dynamicMap: Float32Array = makeDynamicMap();

function makeDynamicMap(): Float32Array {
  const round = Math.fround;
  const low = round(0.1);
  const values = [0, 1];
  for (let decade = 0; decade < 7; ++decade) {
    const intervals = 2 ** decade;
    const step = round(round(1 - low) / intervals);
    const boundary = (index: number) =>
      index < (intervals + 1) / 2 ? round(low + step * index) : round(1 - step * (intervals - index));
    for (let index = 0; index < intervals; ++index) {
      const middle = round(round(boundary(index) + boundary(index + 1)) / 2);
      const value = round(round(10 ** (decade - 6)) * middle);
      values.push(value, -value);
    }
  }
  return Float32Array.from(values).sort();
}
