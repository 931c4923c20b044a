# EBMVK_VULKAN=AUTO: builds the Vulkan engine in a separate build folder. If that fails, the rest is still built.
#
# Included by vulkan.cmake, this file adds the target; the target runs this file as a script (cmake -P), with settings.cmake.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  set(folder "${PROJECT_BINARY_DIR}/vulkan")
  set(settings)
  foreach(name
      CMAKE_BUILD_TYPE CMAKE_CXX_COMPILER CMAKE_CXX_FLAGS CMAKE_MAKE_PROGRAM CMAKE_MODULE_PATH CMAKE_PREFIX_PATH
      CMAKE_OSX_ARCHITECTURES CMAKE_OSX_DEPLOYMENT_TARGET CMAKE_TOOLCHAIN_FILE
      Python_EXECUTABLE Python_INCLUDE_DIR Python_LIBRARY pybind11_DIR
      VULKAN_HPP_DIR FMT_DIR GLSLC SPIRV_VAL EBMVK_WERROR)
    if(DEFINED ${name} AND NOT "${${name}}" STREQUAL "")
      string(APPEND settings "set(${name} [==[${${name}}]==] CACHE STRING \"\" FORCE)\n")
    endif()
  endforeach()
  string(APPEND settings
    "set(KOMPUTE_SOURCE_DIR [==[${kompute_root}]==] CACHE STRING \"\" FORCE)\n"
    "set(CMAKE_LIBRARY_OUTPUT_DIRECTORY [==[${folder}/module]==] CACHE STRING \"\" FORCE)\n"
    "set(EBMVK_VULKAN ON CACHE STRING \"\" FORCE)\n"
    "set(EBMVK_ONLY_VULKAN ON CACHE STRING \"\" FORCE)\n")
  file(MAKE_DIRECTORY "${folder}/module")
  file(CONFIGURE OUTPUT "${folder}/settings.cmake" CONTENT "@settings@" @ONLY)
  add_custom_target(ebmvk_try_vulkan ALL
    COMMAND "${CMAKE_COMMAND}" "-Dsource=${PROJECT_SOURCE_DIR}" "-Dfolder=${folder}" "-Dgenerator=${CMAKE_GENERATOR}"
      "-Dbuilt=${PROJECT_BINARY_DIR}/_built.py" "-DPython_VERSION=${Python_VERSION}" "-Dhighway_found=${highway_found}"
      -P "${CMAKE_CURRENT_LIST_FILE}"
    BYPRODUCTS "${PROJECT_BINARY_DIR}/_built.py"
    COMMENT "The Vulkan engine" VERBATIM)
  add_dependencies(ebmvk_try_vulkan _cpu) # one after the other: each takes all processors
  install(DIRECTORY "${folder}/module/" DESTINATION ebmvk FILES_MATCHING PATTERN "_vulkan*")
  return()
endif()

set(log "${folder}.log")
execute_process(
  COMMAND "${CMAKE_COMMAND}" -G "${generator}" -C "${folder}/settings.cmake" -S "${source}" -B "${folder}"
  RESULT_VARIABLE failed OUTPUT_FILE "${log}" ERROR_FILE "${log}")
if(NOT failed)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" --build "${folder}" --parallel
    RESULT_VARIABLE failed OUTPUT_FILE "${log}" ERROR_FILE "${log}")
endif()
set(vulkan_left_out "")
if(failed)
  file(READ "${log}" said)
  string(REGEX MATCH "[^\n]*(error:|Error:|CMake Error)[^\n]*" first "${said}")
  string(REGEX REPLACE "[\"\\\\]" "'" first "${first}")
  set(vulkan_left_out "it failed to build: ${first} (log: ${log})")
  message("ebmvk: built without the Vulkan engine: ${vulkan_left_out}")
  file(REMOVE_RECURSE "${folder}/module")
  file(MAKE_DIRECTORY "${folder}/module")
endif()
configure_file("${source}/csrc/_built.py.in" "${built}" @ONLY)
