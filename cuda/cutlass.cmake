# Sets FLASH3_CUTLASS_INCLUDE: CUTLASS_DIR if given, else the PyPI package nvidia-cutlass, else a download.
set(CUTLASS_DIR "" CACHE PATH "CUTLASS checkout or its include folder; empty: the package nvidia-cutlass, else a download")

if(CUTLASS_DIR)
  set(candidates ${CUTLASS_DIR}/include ${CUTLASS_DIR})
else()
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_Interpreter_FOUND)
    # find_spec does not import the package: that would pull in dependencies which --no-deps left out.
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c
              "import importlib.util as u; s = u.find_spec('cutlass_library'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE package_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(package_dir)
      set(candidates ${package_dir}/source/include)
    endif()
  endif()
endif()

foreach(candidate IN LISTS candidates)
  if(EXISTS ${candidate}/cutlass/cutlass.h)
    set(FLASH3_CUTLASS_INCLUDE ${candidate})
    break()
  endif()
endforeach()

if(NOT FLASH3_CUTLASS_INCLUDE)
  if(CUTLASS_DIR)
    message(FATAL_ERROR "CUTLASS_DIR=${CUTLASS_DIR} holds no include/cutlass/cutlass.h")
  endif()
  message(STATUS "flash3: downloading CUTLASS (pip install --no-deps nvidia-cutlass==4.2.0.0, or -DCUTLASS_DIR, avoid this)")
  include(FetchContent)
  # A SOURCE_SUBDIR without a CMakeLists.txt: only the headers are wanted, not CUTLASS's own build.
  FetchContent_Declare(cutlass
    GIT_REPOSITORY https://github.com/NVIDIA/cutlass.git GIT_TAG v4.2.0 GIT_SHALLOW ON SOURCE_SUBDIR include)
  FetchContent_MakeAvailable(cutlass)
  set(FLASH3_CUTLASS_INCLUDE ${cutlass_SOURCE_DIR}/include)
endif()
message(STATUS "flash3: CUTLASS headers in ${FLASH3_CUTLASS_INCLUDE}")
