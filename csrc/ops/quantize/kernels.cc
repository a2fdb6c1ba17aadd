#include "ops/quantize/kernels.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const RowKernels row_kernels;
extern const RangeKernels range_kernels;
extern const GridKernels grid_kernels;
extern const IntKernels int_kernels;
extern const PanelKernels panel_kernels[2];
extern const CodebookKernels codebook_kernels;
extern const SmallFloatKernels small_float_kernels;
}  // namespace scalar
namespace avx2 {
extern const RowKernels row_kernels;
extern const RangeKernels range_kernels;
extern const GridKernels grid_kernels;
extern const IntKernels int_kernels;
extern const PanelKernels panel_kernels[2];
extern const CodebookKernels codebook_kernels;
extern const SmallFloatKernels small_float_kernels;
}  // namespace avx2
namespace avx512 {
extern const RowKernels row_kernels;
extern const RangeKernels range_kernels;
extern const GridKernels grid_kernels;
extern const IntKernels int_kernels;
extern const PanelKernels panel_kernels[2];
extern const CodebookKernels codebook_kernels;
extern const SmallFloatKernels small_float_kernels;
}  // namespace avx512

namespace {

template <class Kernels>
const Kernels& selected(const Kernels& scalar, const Kernels& avx2, const Kernels& avx512) {
  const Kernels* const by_isa[] = {&scalar, &avx2, &avx512};
  return *of_selected_isa(by_isa);
}

}  // namespace

const RowKernels& row_kernels() {
  return selected(scalar::row_kernels, avx2::row_kernels, avx512::row_kernels);
}
const RangeKernels& range_kernels() {
  return selected(scalar::range_kernels, avx2::range_kernels, avx512::range_kernels);
}
const GridKernels& grid_kernels() {
  return selected(scalar::grid_kernels, avx2::grid_kernels, avx512::grid_kernels);
}
const IntKernels& int_kernels() {
  return selected(scalar::int_kernels, avx2::int_kernels, avx512::int_kernels);
}
const PanelKernels& panel_kernels(bool half) {
  return selected(scalar::panel_kernels[half], avx2::panel_kernels[half], avx512::panel_kernels[half]);
}
const CodebookKernels& codebook_kernels() {
  return selected(scalar::codebook_kernels, avx2::codebook_kernels, avx512::codebook_kernels);
}
const SmallFloatKernels& small_float_kernels() {
  return selected(scalar::small_float_kernels, avx2::small_float_kernels, avx512::small_float_kernels);
}

}  // namespace quantaria::ops
