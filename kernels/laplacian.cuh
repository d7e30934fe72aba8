// Stand-in: the fourth-order second difference.
template <class T>
__device__ __forceinline__ T second_difference(const T* p, int stride)
{
    return T(-2.5) * p[0] + T(4.0 / 3) * (p[-stride] + p[stride]) - T(1.0 / 12) * (p[-2 * stride] + p[2 * stride]);
}
