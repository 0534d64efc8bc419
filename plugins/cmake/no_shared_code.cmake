# Fails when an object of one instruction set holds weak functions: the linker keeps one copy of
# each, perhaps that of an instruction set that the machine cannot run.
#
# Variables: NM, OBJECTS.
execute_process(COMMAND ${NM} -C ${OBJECTS} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]* [WV] [^\n]*" weak "${symbols}")
if(weak)
  list(JOIN weak "\n" lines)
  message(FATAL_ERROR "kernels must have internal linkage:\n${lines}")
endif()
