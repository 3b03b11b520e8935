# cuDNN: used if cudnn.h, libcudnn and cudnn-frontend's headers are found; without it attention runs on Choir's own
# flash kernels. launch/setup_cudnn_frontend fetches the headers. Included after choir_kernels is defined.
#
# cudnn-frontend 1.18 is the newest release whose headers need cuDNN and the run-time only: from 1.19 on they contain
# kernels, which need the run-time compiler and the driver's library.
find_path(CUDNN_INCLUDE cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
find_path(CUDNN_FRONTEND_INCLUDE cudnn_frontend.h
          HINTS ${CMAKE_SOURCE_DIR}/build/third_party/cudnn_frontend/include)

set(cudnn_missing "")
if(NOT CUDNN_INCLUDE OR NOT CUDNN_LIBRARY)
  set(cudnn_missing "cuDNN is not found (cudnn.h, libcudnn.so)")
elseif(NOT CUDNN_FRONTEND_INCLUDE)
  set(cudnn_missing "the headers of cudnn-frontend are not found (launch/setup_cudnn_frontend fetches them)")
else()
  file(STRINGS ${CUDNN_FRONTEND_INCLUDE}/cudnn_frontend_version.h frontend_lines REGEX "M(AJ|IN)OR_VERSION [0-9]+$")
  string(REGEX REPLACE ".*MAJOR_VERSION ([0-9]+).*MINOR_VERSION ([0-9]+).*" "\\1.\\2" frontend_version "${frontend_lines}")
  if(NOT frontend_version VERSION_EQUAL 1.18)
    set(cudnn_missing "cudnn-frontend in ${CUDNN_FRONTEND_INCLUDE} is ${frontend_version}, and Choir needs 1.18")
  endif()
endif()

if(cudnn_missing)
  set(with_cudnn OFF)
  message(STATUS "Attention on GPUs by Choir's flash kernels only: ${cudnn_missing}")
else()
  set(with_cudnn ON)
  message(STATUS "Attention on GPUs by cuDNN (cudnn-frontend ${frontend_version}) and Choir's flash kernels")
  # This file only describes graphs: optimising it would cost more time than it saves.
  set_property(SOURCE ${CMAKE_SOURCE_DIR}/kernels/cuda/cudnn_attention.cpp APPEND PROPERTY COMPILE_OPTIONS
               "-DCHOIR_CUDNN;-DCUDNN_FRONTEND_SKIP_JSON_LIB;-O1;-isystem;${CUDNN_FRONTEND_INCLUDE}")
  target_include_directories(choir_options SYSTEM INTERFACE ${CUDNN_INCLUDE})
  target_sources(choir_loaded_libraries PRIVATE launch/gpu_libraries/cudnn.cpp)
  get_filename_component(cudnn_folder ${CUDNN_LIBRARY} DIRECTORY)
  target_compile_definitions(choir_loaded_libraries PRIVATE CHOIR_CUDNN_FOLDER="${cudnn_folder}")
endif()
