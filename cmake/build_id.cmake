# Run by every build (cmake -P), so that the id follows the commit without a new configure.
# In: SOURCE_DIR, BINARY_DIR, VERSION, TOOLS. Out: BINARY_DIR/build_id.cc, rewritten only when it changes.
set(revision source)
# .git must lie here: in someone's node_modules, git would answer for their repository.
if(EXISTS ${SOURCE_DIR}/.git)
  execute_process(COMMAND git describe --always --abbrev=12 --dirty --exclude=*
    WORKING_DIRECTORY ${SOURCE_DIR} OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE failed ERROR_QUIET)
  if(NOT failed)
    set(revision "git ${described}")
  endif()
endif()
set(QUANTARIA_BUILD_ID "quantaria ${VERSION} (${revision}; ${TOOLS})")
configure_file(${SOURCE_DIR}/csrc/core/build_id.cc.in ${BINARY_DIR}/build_id.cc @ONLY)
