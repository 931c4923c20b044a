# The Vulkan engine, `_vulkan`: finds headers and the shader compiler, and names what is missing.

# Says what is missing and how to get it; ends the build if EBMVK_VULKAN=ON.
macro(ebmvk_vulkan_missing what how)
  if(EBMVK_VULKAN STREQUAL "ON")
    message(FATAL_ERROR "ebmvk: EBMVK_VULKAN=ON, and ${what} is missing. ${how}")
  endif()
  set(vulkan_left_out "${what} was missing when it was built. ${how}")
  message(WARNING "ebmvk: built without the Vulkan engine: ${what} is missing. ${how}")
endmacro()

# Compiles and validates every shader of the manifest; sets kernels_dir, and kernels.cpp is built in it.
function(ebmvk_add_shaders target)
  set(out "${PROJECT_BINARY_DIR}/shaders")
  set(shaders "${PROJECT_SOURCE_DIR}/shaders")
  file(MAKE_DIRECTORY "${out}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${shaders}/kernels.toml" "${shaders}/generate.py")
  execute_process(COMMAND "${Python_EXECUTABLE}" "${shaders}/generate.py" plan "${out}" COMMAND_ERROR_IS_FATAL ANY)
  file(STRINGS "${out}/plan.txt" plan)
  set(binaries)
  foreach(line IN LISTS plan)
    separate_arguments(line)
    list(GET line 0 kernel)
    list(GET line 1 stem)
    list(GET line 2 source)
    list(SUBLIST line 3 -1 definitions)
    set(binary "${out}/${stem}.spv")
    set(validate)
    if(SPIRV_VAL)
      set(validate COMMAND "${SPIRV_VAL}" --target-env vulkan1.2 "${binary}")
    endif()
    add_custom_command(
      OUTPUT "${binary}"
      COMMAND "${GLSLC}" --target-env=vulkan1.2 -O -Werror ${definitions} -fshader-stage=compute
        -I "${out}/${kernel}" -I "${shaders}/include" -MD -MF "${binary}.d" -o "${binary}" "${shaders}/${source}"
      ${validate}
      DEPENDS "${shaders}/${source}" "${out}/${kernel}/interface.glsl"
      DEPFILE "${binary}.d"
      COMMENT "Shader ${stem}" VERBATIM)
    list(APPEND binaries "${binary}")
  endforeach()
  add_custom_command(
    OUTPUT "${out}/kernels.cpp"
    COMMAND "${Python_EXECUTABLE}" "${shaders}/generate.py" embed "${out}"
    DEPENDS ${binaries} "${shaders}/generate.py" "${shaders}/kernels.toml" VERBATIM)
  target_sources(${target} PRIVATE "${out}/kernels.cpp")
  target_include_directories(${target} PRIVATE "${out}" "${generated}" "${PROJECT_SOURCE_DIR}/csrc")
endfunction()

find_path(VULKAN_HPP_DIR vulkan/vulkan.hpp HINTS "$ENV{VULKAN_SDK}/include")
find_path(FMT_DIR fmt/format.h)
find_program(GLSLC glslc HINTS "$ENV{VULKAN_SDK}/bin")
find_program(SPIRV_VAL spirv-val HINTS "$ENV{VULKAN_SDK}/bin")

if(NOT VULKAN_HPP_DIR)
  ebmvk_vulkan_missing("the header vulkan/vulkan.hpp" "To have it: apt install libvulkan-dev")
  return()
elseif(NOT GLSLC)
  ebmvk_vulkan_missing("the shader compiler glslc" "To have it: apt install glslc")
  return()
elseif(NOT FMT_DIR)
  ebmvk_vulkan_missing("the header fmt/format.h" "To have it: apt install libfmt-dev")
  return()
endif()
ebmvk_find_kompute()
if(NOT kompute_root)
  ebmvk_vulkan_missing("Kompute ${KOMPUTE_VERSION}"
    "pip fetches its sources (sdist kp) when it can reach an index; or set KOMPUTE_SOURCE_DIR to unpacked ones")
  return()
endif()
if(NOT SPIRV_VAL)
  message(STATUS "ebmvk: shaders are not validated: spirv-val is missing. To have it: apt install spirv-tools")
endif()

if(EBMVK_VULKAN STREQUAL "AUTO")
  include(csrc/try_vulkan.cmake)
  return()
endif()

# Only what kp::Sequence needs. No log: Kompute's would go to standard output.
set(kompute_src "${kompute_root}/src")
add_library(ebmvk_kompute STATIC "${kompute_src}/Sequence.cpp")
target_include_directories(ebmvk_kompute SYSTEM PUBLIC
  "${kompute_src}/include" "${kompute_src}/include/kompute" "${VULKAN_HPP_DIR}" "${FMT_DIR}")
target_compile_definitions(ebmvk_kompute PUBLIC
  KOMPUTE_OPT_LOG_LEVEL_DISABLED=1 FMT_HEADER_ONLY=1 VK_NO_PROTOTYPES=1 VULKAN_HPP_DISPATCH_LOADER_DYNAMIC=1)
if(NOT MSVC)
  target_compile_options(ebmvk_kompute PRIVATE -w)
endif()

file(GLOB vulkan_sources CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/csrc/vulkan/*/*.cpp ${PROJECT_SOURCE_DIR}/csrc/bindings/vulkan.cpp)
pybind11_add_module(_vulkan MODULE ${vulkan_sources})
ebmvk_add_shaders(_vulkan)
target_link_libraries(_vulkan PRIVATE ebmvk_kompute ebmvk_warnings Threads::Threads ${CMAKE_DL_LIBS})
target_precompile_headers(_vulkan PRIVATE <vulkan/vulkan.hpp>)  # three quarters of the time of each source
set_source_files_properties("${PROJECT_BINARY_DIR}/shaders/kernels.cpp" PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
install(TARGETS _vulkan DESTINATION ebmvk)
message(STATUS "ebmvk: _vulkan is built with Kompute ${KOMPUTE_VERSION} from ${kompute_root}")
