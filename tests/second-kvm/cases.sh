# What tests/second_kvm.rs has run on the second KVM: each case prints "case NAME", the program's output, "code N".
try() {
  echo "case $1"
  shift
  nacre run "$@"
  echo "code $?"
}
grep -qw svm /proc/cpuinfo && echo "svm: yes"
try hello /hello.cwasm one "two words"
try exit /hello.cwasm --exit 42
try trap /traps.cwasm oob
try division /traps.cwasm div0
try memory --memory 128MiB /traps.cwasm alloc
try workers --workers 2 /primes.cwasm 200000
mkdir input
echo content >input/file
try directory --dir input::/data --export /data::output --env KEY=value /hello.cwasm --env KEY
cmp input/file output/file && echo "same: yes"
