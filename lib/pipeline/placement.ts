import { getDefaultDevice } from '../device';
import { type NativeTensor, native } from '../native';
import { Tensor } from '../tensor';
import { tensorInfo } from '../tensor_info';

/** Where jobs compute: on the default device. Takes a tensor of a checkpoint over, which is mapped, if that is elsewhere. */
export function placed(tensor: Tensor): Tensor {
  const device = getDefaultDevice();
  if (tensor.device === device) return tensor;
  using own = tensor;
  const handle = Tensor.native(own, 'tensor');
  if (tensorInfo(handle).contiguous) return own.to(device);
  using whole = Tensor.wrap(native.tensorCopy(handle, own.dtype));
  return whole.to(device);
}

/** The same of a native view. */
export const placedView = (view: NativeTensor): Tensor => placed(Tensor.wrap(view));
