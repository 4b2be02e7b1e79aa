# cmake -DFROM=<file> -DFOLDER=<folder> -P place.cmake: copies the file into the folder, unless what is
# there is the same. By renaming, since a process may have loaded what was there.

cmake_path(GET FROM FILENAME name)
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${FROM} ${FOLDER}/${name}
                RESULT_VARIABLE differs OUTPUT_QUIET ERROR_QUIET)
if(differs)
  file(MAKE_DIRECTORY ${FOLDER})
  file(COPY_FILE ${FROM} ${FOLDER}/new-${name})
  file(RENAME ${FOLDER}/new-${name} ${FOLDER}/${name})
endif()
