'use strict';

/** `void quantaria::ops::(anonymous namespace)::gemm<quantaria::simt::Half, true>(...)` to `gemm<Half, true>`. */
function shortName(demangled) {
  const head = demangled.replace(/^void /, '').replace(/\(anonymous namespace\)::/g, '');
  let depth = 0;
  let end = 0;
  for (; end < head.length && (depth > 0 || head[end] !== '('); end++) {
    if (head[end] === '<') depth++;
    if (head[end] === '>') depth--;
  }
  return head.slice(0, end).replace(/quantaria::(ops|simt|numerics)::/g, '');
}

module.exports = { shortName };
