# Kompute's sources: a pinned release from KOMPUTE_SOURCE_DIR, from the source distribution, or fetched by pip.

set(KOMPUTE_VERSION 0.9.0)
set(KOMPUTE_SHA256 98e583dc6e9731ff6d7a3e3317817e4d93f7b2945929619e29a56325db279949)
set(KOMPUTE_SOURCE_DIR "" CACHE PATH "Unpacked sources of Kompute ${KOMPUTE_VERSION}; empty: pip fetches the sdist kp")
set(KOMPUTE_IN_SDIST "${PROJECT_SOURCE_DIR}/kompute/kp-${KOMPUTE_VERSION}")

# Fetches and unpacks Kompute in `folder`. Sets kompute_failed to pip's output if that fails, or else to "".
function(ebmvk_fetch_kompute folder python)
  set(kompute_failed "" PARENT_SCOPE)
  if(EXISTS "${folder}/kp-${KOMPUTE_VERSION}/src/Sequence.cpp")
    return()
  endif()
  file(MAKE_DIRECTORY "${folder}")
  file(WRITE "${folder}/requirements.txt" "kp==${KOMPUTE_VERSION} --hash=sha256:${KOMPUTE_SHA256}\n")
  execute_process(
    COMMAND "${python}" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all:
      --no-build-isolation --require-hashes --dest "${folder}" -r "${folder}/requirements.txt"
    RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
  if(failed)
    set(kompute_failed "${log}" PARENT_SCOPE)
    return()
  endif()
  file(ARCHIVE_EXTRACT INPUT "${folder}/kp-${KOMPUTE_VERSION}.tar.gz" DESTINATION "${folder}")
endfunction()

# Sets kompute_root to the folder with src/Sequence.cpp, or to NOTFOUND.
function(ebmvk_find_kompute)
  if(KOMPUTE_SOURCE_DIR)
    set(root "${KOMPUTE_SOURCE_DIR}")
  elseif(EXISTS "${KOMPUTE_IN_SDIST}/src/Sequence.cpp")
    set(root "${KOMPUTE_IN_SDIST}")
  else()
    set(root "${PROJECT_BINARY_DIR}/kompute/kp-${KOMPUTE_VERSION}")
    ebmvk_fetch_kompute("${PROJECT_BINARY_DIR}/kompute" "${Python_EXECUTABLE}")
    if(kompute_failed)
      message(STATUS "ebmvk: pip said: ${kompute_failed}")
    endif()
  endif()
  if(NOT EXISTS "${root}/src/Sequence.cpp")
    set(root NOTFOUND)
  endif()
  set(kompute_root "${root}" PARENT_SCOPE)
endfunction()

# A source distribution contains Kompute's sources, so that building from it needs no package index.
function(ebmvk_put_kompute_into_sdist)
  find_package(Python REQUIRED COMPONENTS Interpreter)
  ebmvk_fetch_kompute("${PROJECT_SOURCE_DIR}/kompute" "${Python_EXECUTABLE}")
  if(kompute_failed)
    message(FATAL_ERROR "ebmvk: the source distribution needs Kompute ${KOMPUTE_VERSION}, but pip could not fetch it: "
      "${kompute_failed}")
  endif()
endfunction()
