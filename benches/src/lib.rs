//! Benchmarks: decisions in instructions and seconds, tunnels in ratios.
