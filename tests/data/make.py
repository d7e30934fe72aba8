"""Makes the files of this directory, as h5py and NumPy write them: python make.py (h5py 3.16, NumPy 2.4).

Every array counts 0, 1, 2 ... in C order over shape (4, 2, 10, 7), but for `maps.npz`.
"""
import h5py
import numpy as np

a = np.arange(4 * 2 * 10 * 7, dtype="f4").reshape(4, 2, 10, 7)


def hdf5(name, data=a, libver=None, **options):
    with h5py.File(name, "w", libver=libver) as f:
        f.create_dataset("gathers", data=data, **options)


hdf5("contiguous.h5")
hdf5("chunked.h5", chunks=(3, 1, 4, 7))
hdf5("gzip_shuffle.h5", chunks=(1, 1, 10, 7), compression="gzip", shuffle=True)
hdf5("latest.h5", a.astype("f8"), "latest", chunks=(1, 2, 10, 7), maxshape=(None, 2, 10, 7), compression="gzip")
hdf5("fixed_array.h5", a, "latest", chunks=(1, 2, 10, 7), compression="gzip", fletcher32=True)
hdf5("half_big_endian.h5", a.astype(">f2"))
hdf5("int32.h5", a.astype("i4"), compression="gzip")
hdf5("lzf.h5", compression="lzf")
with h5py.File("sparse.h5", "w") as f:
    d = f.create_dataset("gathers", a.shape, "f4", chunks=(1, 2, 10, 7), compression="gzip")
    d[0], d[3] = a[0], a[3]
with h5py.File("groups.h5", "w") as f:
    f["comment"] = "text"
    f["inner/first"] = a
    f["inner/second"] = a[:1]
    f["link"] = h5py.SoftLink("/inner/second")
    f.attrs["dt"] = 0.001
pair = np.dtype([("x", "f8"), ("tag", "S5")])
colour = h5py.enum_dtype({"red": 0, "green": 1}, basetype="i1")
record = np.dtype([("a", "f4"), ("pair", pair), ("axes", pair, (2, 3)), ("text", h5py.string_dtype()), ("e", colour)])
for name, libver in [("compound.h5", "earliest"), ("compound_latest.h5", "latest")]:
    with h5py.File(name, "w", libver=libver, userblock_size=512) as f:
        f["gathers"] = a
        for i in range(6):
            f["gathers"].attrs[f"source {i}"] = np.zeros(2, pair)
        f["gathers"].attrs["record"] = h5py.Empty(record)
        f.create_dataset("before", (2,), record)
np.savez("stored.npz", a=a, b=a[:2].astype("f2"))
np.savez_compressed("deflated.npz", note="text", a=a, f=np.asfortranarray(a))
np.savez_compressed("maps.npz", maps=np.full((3, 1, 6, 5), 2000, "i2"))
np.save("fortran.npy", np.asfortranarray(a))
