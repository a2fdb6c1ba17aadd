# quantaria_portable: the same objects as `quantaria`, linked against stand-ins for libc and libm that stop at
# glibc 2.28, the floor of the official Node 20. Without them the linker takes the newest version of every symbol
# that the building machine has. For released binaries; see scripts/glibc-stub.cjs.
set(QUANTARIA_GLIBC_FLOOR 2.28)
set(stubs ${CMAKE_CURRENT_BINARY_DIR}/glibc-${QUANTARIA_GLIBC_FLOOR})
add_custom_command(OUTPUT ${stubs}/libc.so ${stubs}/libm.so
  COMMAND node ${CMAKE_CURRENT_SOURCE_DIR}/scripts/glibc-stub.cjs ${QUANTARIA_GLIBC_FLOOR} ${stubs} ${CMAKE_CXX_COMPILER}
  DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/scripts/glibc-stub.cjs VERBATIM)
add_custom_target(glibc_stubs DEPENDS ${stubs}/libc.so ${stubs}/libm.so)

execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libc_nonshared.a
  OUTPUT_VARIABLE libc_nonshared OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
add_module(quantaria_portable csrc/core/glibc_floor.cc)
set_target_properties(quantaria_portable PROPERTIES EXCLUDE_FROM_ALL ON)
set_property(TARGET quantaria_portable APPEND PROPERTY LINK_DEPENDS ${stubs}/libc.so ${stubs}/libm.so)
add_dependencies(quantaria_portable glibc_stubs)
# libgcc_s stays shared: linked statically it needs _dl_find_object of glibc 2.35, and Node has it loaded anyway.
target_link_options(quantaria_portable PRIVATE -nodefaultlibs)
target_link_libraries(quantaria_portable PRIVATE cuda -Wl,-Bstatic -lstdc++ -Wl,-Bdynamic
  ${stubs}/libm.so ${stubs}/libc.so ${libc_nonshared} gcc_s gcc)
