@echo off
rem Runs Tymbal in a container, on folders of this machine:
rem
rem   containers\run.cmd prepare audio -o spectrograms/store
rem   containers\run.cmd pretrain spectrograms/store -o runs/first --size small
rem
rem The folders that it sees are audio (read only), spectrograms and runs. They are those of the present folder, or:
rem   TYMBAL_AUDIO, TYMBAL_SPECTROGRAMS, TYMBAL_RUNS    whole paths
rem   TYMBAL_IMAGE    tymbal:cuda or tymbal:cpu
rem   TYMBAL_ENGINE   docker or podman
rem   TYMBAL_GPU      yes, no; yes where nvidia-smi is installed
setlocal
if not defined TYMBAL_AUDIO set "TYMBAL_AUDIO=%CD%\audio"
if not defined TYMBAL_SPECTROGRAMS set "TYMBAL_SPECTROGRAMS=%CD%\spectrograms"
if not defined TYMBAL_RUNS set "TYMBAL_RUNS=%CD%\runs"
if not exist "%TYMBAL_AUDIO%" mkdir "%TYMBAL_AUDIO%"
if not exist "%TYMBAL_SPECTROGRAMS%" mkdir "%TYMBAL_SPECTROGRAMS%"
if not exist "%TYMBAL_RUNS%" mkdir "%TYMBAL_RUNS%"

if not defined TYMBAL_ENGINE set "TYMBAL_ENGINE=docker"
if defined TYMBAL_GPU goto chosen
set "TYMBAL_GPU=no"
where nvidia-smi >nul 2>nul && set "TYMBAL_GPU=yes"
:chosen
set "BUILD=cpu"
set "GPUS="
if /i "%TYMBAL_GPU%"=="yes" set "BUILD=cuda"
if /i "%TYMBAL_GPU%"=="yes" set "GPUS=--gpus all"
if not defined TYMBAL_IMAGE set "TYMBAL_IMAGE=tymbal:%BUILD%"

%TYMBAL_ENGINE% run --rm --init --stop-timeout 180 --shm-size 2g %GPUS% ^
    -v "%TYMBAL_AUDIO%:/data/audio:ro" -v "%TYMBAL_SPECTROGRAMS%:/data/spectrograms" -v "%TYMBAL_RUNS%:/data/runs" ^
    -e OMP_NUM_THREADS -e HF_HUB_OFFLINE ^
    "%TYMBAL_IMAGE%" %*
exit /b %ERRORLEVEL%
