# Runs Tymbal in a container, on folders of this machine:
#
#   containers\run.ps1 prepare audio -o spectrograms/store
#   containers\run.ps1 pretrain spectrograms/store -o runs/first --size small
#
# The folders that it sees are audio (read only), spectrograms and runs. They are those of the present folder, or:
#   $env:TYMBAL_AUDIO, $env:TYMBAL_SPECTROGRAMS, $env:TYMBAL_RUNS
#   $env:TYMBAL_IMAGE    tymbal:cuda or tymbal:cpu
#   $env:TYMBAL_ENGINE   docker or podman
#   $env:TYMBAL_GPU      yes, no; yes where nvidia-smi is installed
$ErrorActionPreference = 'Stop'

function Get-Folder([string] $Given, [string] $Default) {
    $path = if ($Given) { $Given } else { $Default }
    New-Item -ItemType Directory -Force -Path $path | Out-Null
    (Resolve-Path -LiteralPath $path).ProviderPath
}

$audio = Get-Folder $env:TYMBAL_AUDIO 'audio'
$spectrograms = Get-Folder $env:TYMBAL_SPECTROGRAMS 'spectrograms'
$runs = Get-Folder $env:TYMBAL_RUNS 'runs'

$engine = if ($env:TYMBAL_ENGINE) { $env:TYMBAL_ENGINE } else { 'docker' }
$gpu = $env:TYMBAL_GPU
if (-not $gpu) {
    $gpu = if (Get-Command nvidia-smi -ErrorAction SilentlyContinue) { 'yes' } else { 'no' }
}
$build = if ($gpu -eq 'yes') { 'cuda' } else { 'cpu' }
$image = if ($env:TYMBAL_IMAGE) { $env:TYMBAL_IMAGE } else { "tymbal:$build" }

$options = @(
    'run', '--rm', '--init', '--stop-timeout', '180', '--shm-size', '2g',
    '-v', "${audio}:/data/audio:ro", '-v', "${spectrograms}:/data/spectrograms", '-v', "${runs}:/data/runs",
    '-e', 'OMP_NUM_THREADS', '-e', 'HF_HUB_OFFLINE'
)
if ($gpu -eq 'yes') { $options += @('--gpus', 'all') }

# PowerShell reads 1,1,2,4 as four values: together again they are one word.
$words = @($args | ForEach-Object { if ($_ -is [array]) { $_ -join ',' } else { $_ } })
& $engine @options $image @words
exit $LASTEXITCODE
