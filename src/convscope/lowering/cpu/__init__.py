"""What a CPU runs besides torch's own operations: loops that numba compiles, and how memory is kept."""

# Float32 elements in a vector of the compiled loops; the filters of a few-channel convolution are a
# multiple of it. LLVM puts a vector into registers as wide as the processor's: one of sixteen elements, two
# of eight (AVX2), four of four (SSE, NEON). With four pixels at a time that keeps AVX2's two units busy;
# blocks of eight take 1.5 times as long there.
LANES = 16
