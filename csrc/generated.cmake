# Headers made from tables; sets `generated`, the folder that holds them.

set(generated "${PROJECT_BINARY_DIR}/generated")
foreach(table integrators operations)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
    "${PROJECT_SOURCE_DIR}/ebmvk/engine/${table}.toml" "${PROJECT_SOURCE_DIR}/ebmvk/engine/${table}.py")
endforeach()
foreach(script integrators bindings)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/${script}.py")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/csrc/${script}.py" "${generated}" COMMAND_ERROR_IS_FATAL ANY)
endforeach()
