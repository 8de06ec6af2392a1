# Sets FLASH3_CUTLASS_INCLUDE: CUTLASS_DIR if given, else the PyPI package nvidia-cutlass where Python has it, else that
# package from PyPI (or whatever index pip is set to), unpacked into the build folder.
set(CUTLASS_DIR "" CACHE PATH "CUTLASS checkout or its include folder; empty: the PyPI package nvidia-cutlass")
set(FLASH3_CUTLASS_PACKAGE nvidia-cutlass==4.2.0.0)

function(flash3_find_cutlass)
  foreach(candidate IN LISTS ARGN)
    if(EXISTS ${candidate}/cutlass/cutlass.h)
      set(FLASH3_CUTLASS_INCLUDE ${candidate} PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

if(CUTLASS_DIR)
  flash3_find_cutlass(${CUTLASS_DIR}/include ${CUTLASS_DIR})
  if(NOT FLASH3_CUTLASS_INCLUDE)
    message(FATAL_ERROR "CUTLASS_DIR=${CUTLASS_DIR} holds no include/cutlass/cutlass.h")
  endif()
else()
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  # find_spec does not import the package: that would pull in dependencies which --no-deps left out.
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c
            "import importlib.util as u; s = u.find_spec('cutlass_library'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE package_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(own_dir ${PROJECT_BINARY_DIR}/cutlass)
  set(candidates ${package_dir}/source/include ${own_dir}/cutlass_library/source/include)
  flash3_find_cutlass(${candidates})
  if(NOT FLASH3_CUTLASS_INCLUDE)
    message(STATUS "flash3: fetching ${FLASH3_CUTLASS_PACKAGE} into ${own_dir}")
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -m pip install --quiet --disable-pip-version-check --no-deps --upgrade
              --target ${own_dir} ${FLASH3_CUTLASS_PACKAGE}
      RESULT_VARIABLE failed)
    flash3_find_cutlass(${candidates})
  endif()
  if(NOT FLASH3_CUTLASS_INCLUDE)
    message(FATAL_ERROR "The CUTLASS headers are not here and pip could not fetch ${FLASH3_CUTLASS_PACKAGE} (${failed}); "
      "install it with pip install --no-deps, or set -DCUTLASS_DIR to a CUTLASS 4.2 checkout")
  endif()
endif()
message(STATUS "flash3: CUTLASS headers in ${FLASH3_CUTLASS_INCLUDE}")
