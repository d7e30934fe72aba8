// A stand-in for NVIDIA's libcuda: one device of host memory that runs no kernels but notes every call in the file
// FAKE_CUDA_LOG and is as strict as the real one about contexts and recordings. FAKE_CUDA names what goes wrong:
// init=CODE, launch=CODE, sync=CODE, devices=N, arch=NN, memory=BYTES, cubin=CODE; several are parted by commas.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef EMPTY // otherwise a library without functions

typedef unsigned int Result;

static long setting(const char *name, long otherwise)
{
    const char *at = getenv("FAKE_CUDA");
    size_t len = strlen(name);
    for (; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, name, len) && at[len] == '=')
            return atol(at + len + 1);
    return otherwise;
}

static void note(const char *format, ...)
{
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (!log)
        return;
    va_list list;
    va_start(list, format);
    vfprintf(log, format, list);
    va_end(list);
    fputc('\n', log);
    fclose(log);
}

// NVRTC asks for a table of private functions; one that holds nothing but its size of 8 bytes is an old driver's
Result cuGetExportTable(const void **table, const void *id)
{
    static const size_t size = 8;
    (void)id;
    *table = &size;
    return 0;
}

static char context, stream, module; // their addresses are the handles
static __thread void *current;
static int recording, recorded;
static size_t taken;

static Result ready(void *s)
{
    return current != &context ? 201 : s != &stream ? 400 : 0;
}

Result cuGetErrorName(Result code, const char **name)
{
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 100 ? "CUDA_ERROR_NO_DEVICE"
          : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : NULL;
    return *name ? 0 : 1;
}

Result cuGetErrorString(Result code, const char **text)
{
    *text = code == 100 ? "no CUDA-capable device is detected" : NULL;
    return *text ? 0 : 1;
}

Result cuInit(unsigned flags) { return flags ? 1 : (Result)setting("init", 0); }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuDeviceGetCount(int *count) { *count = (int)setting("devices", 1); return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)setting("memory", 1 << 20); return 0; }

Result cuDeviceGetName(char *name, int len, int device)
{
    snprintf(name, (size_t)len, "Fake %d", device);
    return 0;
}

Result cuDeviceGetAttribute(int *value, int which, int device)
{
    (void)device;
    int arch = (int)setting("arch", 90);
    switch (which) {
    case 16: *value = 132; return 0;      // multiprocessors
    case 75: *value = arch / 10; return 0;
    case 76: *value = arch % 10; return 0;
    case 97: *value = 232448; return 0;   // opt-in shared memory of a block
    case 120: *value = arch >= 90; return 0; // clusters
    }
    return 1;
}

Result cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) { (void)device; (void)flags; return 0; }
Result cuDevicePrimaryCtxRetain(void **c, int device) { (void)device; note("context +1"); *c = &context; return 0; }
Result cuDevicePrimaryCtxRelease_v2(int device) { (void)device; note("context -1"); return 0; }
Result cuCtxSetCurrent(void *c) { current = c; return 0; }

Result cuMemGetInfo_v2(size_t *free, size_t *total)
{
    *total = (size_t)setting("memory", 1 << 20);
    *free = *total - taken;
    return current ? 0 : 201;
}

// the size of a block stands before it
Result cuMemAlloc_v2(uint64_t *address, size_t bytes)
{
    if (current != &context || recording)
        return recording ? 900 : 201;
    if (bytes == 0)
        return 1;
    if (taken + bytes > (size_t)setting("memory", 1 << 20))
        return 2;
    size_t *block = malloc(bytes + 256);
    *block = bytes;
    memset(block + 32, 0xa5, bytes);
    taken += bytes;
    note("memory +1");
    *address = (uint64_t)(uintptr_t)(block + 32);
    return 0;
}

Result cuMemFree_v2(uint64_t address)
{
    size_t *block = (size_t *)(uintptr_t)address - 32;
    taken -= *block;
    free(block);
    note("memory -1");
    return current ? 0 : 201;
}

Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *s)
{
    if (recording)
        return 900;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return ready(s);
}

Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *s)
{
    if (recording)
        return 900;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return ready(s);
}

Result cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *s)
{
    if (recording)
        recorded++;
    else
        memset((void *)(uintptr_t)at, value, bytes);
    return ready(s);
}

Result cuStreamCreate(void **s, unsigned flags)
{
    note("stream +1");
    *s = &stream;
    return current != &context ? 201 : flags == 1 ? 0 : 1;
}

Result cuStreamDestroy_v2(void *s) { note("stream -1"); return ready(s); }
Result cuStreamSynchronize(void *s) { return recording ? 900 : setting("sync", 0) ? (Result)setting("sync", 0) : ready(s); }

Result cuStreamBeginCapture_v2(void *s, int mode)
{
    if (recording || mode != 1)
        return 1;
    recording = 1;
    recorded = 0;
    return ready(s);
}

Result cuStreamEndCapture(void *s, void **graph)
{
    if (!recording)
        return 1;
    recording = 0;
    note("graph +1");
    *graph = calloc(1, sizeof(int));
    *(int *)*graph = recorded;
    return ready(s);
}

Result cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags)
{
    note("executable graph +1");
    *out = calloc(1, sizeof(int));
    *(int *)*out = *(int *)graph;
    return flags ? 1 : 0;
}

Result cuGraphLaunch(void *graph, void *s) { note("replay %d", *(int *)graph); return ready(s); }
Result cuGraphExecDestroy(void *graph) { note("executable graph -1"); free(graph); return 0; }
Result cuGraphDestroy(void *graph) { note("graph -1"); free(graph); return 0; }

Result cuModuleLoadDataEx(void **out, const char *image, unsigned n, int *options, void **values)
{
    int cubin = !memcmp(image, "\177ELF", 4);
    if (n != 2 || options[0] != 5 || options[1] != 6)
        return 1;
    if (cubin && setting("cubin", 0)) {
        snprintf(values[0], (size_t)(uintptr_t)values[1], "a reason\nof the driver");
        return (Result)setting("cubin", 0);
    }
    if (!cubin && !strstr(image, "\n.version "))
        return 200;
    note("module +1");
    note(cubin ? "loaded machine code" : "loaded PTX");
    *out = &module;
    return current ? 0 : 201;
}

Result cuModuleUnload(void *m) { note("module -1"); return m == &module ? 0 : 1; }
Result cuModuleGetFunction(void **f, void *m, const char *name) { *f = strdup(name); return m == &module ? 0 : 1; }
Result cuFuncGetAttribute(int *value, int which, void *f) { (void)f; *value = 1000; return which == 1 ? 0 : 1; }
Result cuFuncSetAttribute(void *f, int which, int value) { (void)f; return which == 8 && value == 231448 ? 0 : 1; }

Result cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *s, void **params, void **extra)
{
    if (setting("launch", 0))
        return (Result)setting("launch", 0);
    if (gy != 1 || gz != 1 || by != 1 || bz != 1 || extra || !gx || !bx)
        return 1;
    if (recording)
        recorded++;
    else
        note("launch %s %u %u %u %u", (char *)f, gx, bx, shared, *(unsigned char *)params[0]);
    return ready(s);
}

#endif
