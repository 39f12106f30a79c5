/* A libcuda.so.1 that executes nothing and tells everything: what Triton's own driver code calls, and with what.
 *
 * It has eight H100s. Handles are small numbers: a context is its device plus one, a module and its function count up.
 * Compiled against the real cuda.h, so that a wrong prototype does not pass.
 */
#include "cuda.h"

/* Called for every function, by its name; `config` and what follows are NULL for all but a launch. */
typedef CUresult (*Witness)(const char *name, const CUlaunchConfig *config, CUfunction function, void **parameters);

static Witness witness;
static size_t modules;
CUcontext stub_current; /* torch's part, which is played in Python, sets it too */

void stub_set_witness(Witness chosen) { witness = chosen; }

static CUresult called(const char *name) { return witness ? witness(name, 0, 0, 0) : CUDA_SUCCESS; }

/* --- what a launch needs ------------------------------------------------------------------- */

CUresult cuInit(unsigned flags) { return called(__func__); }

CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return called(__func__);
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : "unknown error";
  return called(__func__);
}

CUresult cuDeviceGetCount(int *count) {
  *count = 8;
  return called(__func__);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return called(__func__);
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
  default: return CUDA_ERROR_INVALID_VALUE;
  }
  return called(__func__);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)(size_t)(device + 1);
  return called(__func__);
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = stub_current;
  return called(__func__);
}

CUresult cuCtxSetCurrent(CUcontext context) {
  stub_current = context;
  return called(__func__);
}

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = (int)(size_t)stub_current - 1;
  return called(__func__);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)++modules;
  return called(__func__);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)module;
  return called(__func__);
}

CUresult cuModuleUnload(CUmodule module) { return called(__func__); }

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return called(__func__);
}

/* The limits are those of every CUDA device (CUDA C++ programming guide, compute capabilities). */
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  if (!config->gridDimX || config->gridDimX > 0x7fffffff || config->gridDimY > 65535 || config->gridDimZ > 65535 ||
      config->blockDimX * config->blockDimY * config->blockDimZ > 1024 || extra)
    return CUDA_ERROR_INVALID_VALUE;
  return witness ? witness(__func__, config, function, parameters) : CUDA_SUCCESS;
}

/* --- what Triton's driver also links, and what would wait or copy: a fill calls none of them ---------------- */

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr address) {
  return called(__func__);
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) { return called(__func__); }
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config) { return called(__func__); }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return called(__func__); }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return called(__func__); }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) { return called(__func__); }
CUresult cuCtxSynchronize(void) { return called(__func__); }
CUresult cuStreamSynchronize(CUstream stream) { return called(__func__); }
CUresult cuEventSynchronize(CUevent event) { return called(__func__); }
CUresult cuMemAlloc(CUdeviceptr *address, size_t size) { return called(__func__); }
CUresult cuMemFree(CUdeviceptr address) { return called(__func__); }
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t size) { return called(__func__); }
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t size) { return called(__func__); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream s) { return called(__func__); }
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream s) { return called(__func__); }
