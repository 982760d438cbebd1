"""What the compilers of accelerators make of dynamic convolutions, without one."""
