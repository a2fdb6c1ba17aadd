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
target_link_libraries(quantaria_portable PRIVATE cuda)
set_target_properties(quantaria_portable PROPERTIES EXCLUDE_FROM_ALL ON)
set(portable quantaria_portable)
if(TARGET quantaria_golden)
  list(APPEND portable quantaria_golden) # for other machines than this one, always; its sources have glibc_floor.cc
endif()
foreach(target ${portable})
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${stubs}/libc.so ${stubs}/libm.so)
  add_dependencies(${target} glibc_stubs)
  # libgcc_s stays shared: linked statically it needs _dl_find_object of glibc 2.35, and Node has it loaded anyway.
  # A program's linker looks into libgcc_s too; and no program must find the stand-ins at run time.
  target_link_options(${target} PRIVATE -nodefaultlibs -Wl,--allow-shlib-undefined)
  set_property(TARGET ${target} PROPERTY SKIP_BUILD_RPATH ON)
  target_link_libraries(${target} PRIVATE -Wl,-Bstatic -lstdc++ -Wl,-Bdynamic
    ${stubs}/libm.so ${stubs}/libc.so ${libc_nonshared} gcc_s gcc)
endforeach()
