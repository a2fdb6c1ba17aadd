#pragma once

namespace quantaria {

/// What this binary was made from and with, in one line, for bug reports and for finding a stale binary:
/// `quantaria 0.1.0 (git 1a2b3c4d5e6f; GNU 12.2.0; x86_64; Release; cuda 13.0.88
/// 80-real,90-real,90-virtual)`. No date in it: the same sources and tools give the same bytes.
const char* build_id();

}  // namespace quantaria
