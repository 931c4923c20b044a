# Headers that both engines share, made from tables; sets `generated`, the folder that holds them.

set(generated "${PROJECT_BINARY_DIR}/generated")
set(engine "${PROJECT_SOURCE_DIR}/ebmvk/engine")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  "${engine}/integrators.toml" "${engine}/integrators.py" "${PROJECT_SOURCE_DIR}/csrc/integrators.py")
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/csrc/integrators.py" "${generated}" COMMAND_ERROR_IS_FATAL ANY)
