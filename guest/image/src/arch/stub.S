// The ring-0 stub, its ring-3 counterpart and the context switch.
//
// Ring 0 does two things: deliver an exception to ring 3, and forget translations. Every instruction there may be emulated
// (~235 ns each on a KVM without hardware virtualisation), so it does nothing else.
//
// Ring-0 stack of a vCPU, top down:
//   [rsp0+8]     word: address of RSP0 in the task state segment, written by ring 3 at boot
//   [rsp0]       word: stack pointer for upcalls, likewise
//   [rsp0+16]    address of a list of addresses, or 0: see `flush_gate`
//   [rsp0+24]    its end
//   ss rsp rflags cs rip error vector      pushed by the processor and the stubs
//   rax cr2                                pushed by `deliver`
// A frame is therefore: cr2 rax vector error rip cs rflags rsp ss, 72 bytes below rsp0. Until ring 3 has copied it, RSP0 lies
// below it, so that an exception that a host injects meanwhile does not overwrite it.
.section .text.stub,"ax"

.globl _start
_start:
    xor %ebp, %ebp
    call guest_entry
    ud2

// ---------------------------------------------------------------- ring 0

// One stub per vector, 16 bytes apart: push (error code and) vector, go on. Vectors 8, 10-14, 17, 21, 29 and 30
// come with an error code of the processor's.
.balign 16
.globl exception_stubs
exception_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp deliver
    .set vector, vector + 1
.endr

.balign 16
deliver:                        // vector error rip cs rflags rsp ss
    testb $3, 24(%rsp)          // came from ring 0: only a host's injection can, drop it
    jz drop_in_ring0
    cmpq $upcall_entry, 16(%rsp)
    jb 1f
    cmpq $upcall_copied, 16(%rsp) // between delivery and the copy of its frame: likewise
    jb drop
1:  cmpb $2, (%rsp)             // an NMI: the host sends as many as it likes, and nothing here needs one
    je nmi
deliver_to_upcall:
    push %rax
    mov %cr2, %rax
    push %rax
    mov 80(%rsp), %rax          // [rsp0+8]
    subq $256, (%rax)           // the frame is safe from here on; until here exceptions come from ring 0 and go below
    pushq 64(%rsp)              // ss
    pushq 80(%rsp)              // [rsp0]: upcall stack pointer
    pushq $0x3002               // rflags: TF, DF, AC and IF clear, IOPL 3 (see the launcher)
    pushq 64(%rsp)              // cs
    pushq $upcall_entry
    iretq
drop:
    add $16, %rsp
    iretq
drop_in_ring0:                  // back without iretq, which not every KVM that emulates ring 0 has for this
    push %rax
    push %rcx
    mov 56(%rsp), %rax          // the interrupted stack pointer, behind two words and vector error rip cs rflags
    mov 32(%rsp), %rcx          // rip
    mov %rcx, -8(%rax)
    mov 48(%rsp), %rcx          // rflags
    mov %rcx, -16(%rax)
    pop %rcx
    lea -16(%rax), %rax
    xchg %rax, (%rsp)
    mov (%rsp), %rsp            // below both words at once: the next injection pushes its own where this points
    popfq
    ret
nmi:                            // during an upcall: drop it, else they would pile up on its stack
    push %rax
    mov 64(%rsp), %rax          // [rsp0]: upcall stack pointer
    cmp %rax, 48(%rsp)          // the interrupted one
    ja 1f
    mov 8(%rax), %rax           // lowest address of the upcall stack
    cmp %rax, 48(%rsp)
    jb 1f
    pop %rax
    jmp drop
1:  pop %rax
    jmp deliver_to_upcall

// int3 gate: forget this vCPU's translations, all or those of the listed addresses, which come in groups of eight. An injected
// #BP only forgets some. The words are found by the end of the stack's page, wherever RSP0 is.
.balign 16
.globl flush_gate
flush_gate:
    push %rax
    mov %rsp, %rax
    or $0xfff, %rax             // [rsp0] is 64 bytes before the end of the page
    cmpq $0, -47(%rax)          // [rsp0+16]
    jne flush_listed
    mov %cr3, %rax
    mov %rax, %cr3
    pop %rax
    iretq
flush_listed:
    push %rcx
    push %rdx
    mov -47(%rax), %rcx
    mov -39(%rax), %rdx         // [rsp0+24]
1:
    .irp at, 0, 8, 16, 24, 32, 40, 48, 56
    mov \at(%rcx), %rax
    invlpg (%rax)
    .endr
    add $64, %rcx
    cmp %rdx, %rcx
    jb 1b
    pop %rdx
    pop %rcx
    pop %rax
    iretq

// ---------------------------------------------------------------- ring 3: upcall

// rsp = U, near the top of this vCPU's upcall stack. Words there: [U] address of the frame, [U+8] lowest address of the
// upcall stack, [U+16] and [U+24] scratch. If the exception hit an upcall, this one goes on below it.
.balign 16
.globl upcall_entry
upcall_entry:
    mov %rax, 16(%rsp)
    mov (%rsp), %rax
    mov 56(%rax), %rax          // interrupted stack pointer
    cmp %rsp, %rax
    ja 1f
    cmp 8(%rsp), %rax
    jb 1f
    mov %rcx, 24(%rsp)
    sub $160, %rax
    and $-16, %rax
    mov (%rsp), %rcx
    mov %rcx, (%rax)
    mov 16(%rsp), %rcx
    mov %rcx, 8(%rax)
    mov 24(%rsp), %rcx
    mov %rax, %rsp
    mov 8(%rsp), %rax
    jmp 2f
1:  mov 16(%rsp), %rax
2:
    push %rbp
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %rbx                   // 14 registers, 112 bytes
    mov 112(%rsp), %rsi         // the frame, on the ring-0 stack
    mov %rsp, %rbx
    sub $80, %rsp
    mov %rsp, %rdi
    mov $9, %ecx
    rep movsq
    // Should an exception that was injected before the copy was complete have overwritten the frame all the same (RSP0 is
    // memory; a hypervisor may have kept it), then its rip, which we look at in the source, lies in this window. No honest
    // exception has one there, and the interrupted context is lost.
    mov -40(%rsi), %rax
    cmp $upcall_entry, %rax
    jb 3f
    cmp $upcall_copied, %rax
    jae 3f
4:  mov $2, %eax                // ExitReason::Exception
    out %eax, $0x10             // hypercall::EXIT
    jmp 4b
3:  mov 8(%rsi), %rax           // rsi = rsp0, the end of the frame
    mov %rsi, (%rax)            // RSP0 again: the frame may be overwritten now
.globl upcall_copied
upcall_copied:
    lea -80(%rbx), %rdi         // first argument: our copy of the frame
    mov %rbx, %rsi              // second: the registers
    sub $4096, %rsp
    and $-64, %rsp
    xor %eax, %eax
    mov %rax, 512(%rsp)
    mov %rax, 520(%rsp)
    mov %rax, 528(%rsp)
    mov %rax, 536(%rsp)
    mov %rax, 544(%rsp)
    mov %rax, 552(%rsp)
    mov %rax, 560(%rsp)
    mov %rax, 568(%rsp)
    mov $0xe7, %eax             // x87, SSE, AVX, AVX-512; the processor masks it with XCR0
    xor %edx, %edx
    xsave64 (%rsp)
    call exception_upcall
    mov $0xe7, %eax
    xor %edx, %edx
    xrstor64 (%rsp)
    mov %rbx, %rsp
    lea -80(%rbx), %rax         // frame copy: cr2 rax vector error rip cs rflags rsp ss
    mov 56(%rax), %rcx          // interrupted stack pointer; its red zone is the 128 bytes below
    mov 32(%rax), %rdx
    mov %rdx, -136(%rcx)        // rip
    mov 48(%rax), %rdx
    mov %rdx, -144(%rcx)        // rflags
    mov 8(%rax), %rdx
    mov %rdx, -152(%rcx)        // rax
    lea -152(%rcx), %rax
    pop %rbx
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    pop %rbp
    mov %rax, %rsp
    pop %rax
    popfq
    ret $128

// ---------------------------------------------------------------- ring 3: waiting for a page

// A task goes on here, all registers as they were when it touched a page that is not here yet. rsp = record, on its own stack
// below its red zone: [rsp] the address, [rsp+8] rip, [rsp+16] rsp. Puts everything away, waits, and runs the instruction again.
.balign 16
.globl page_wait_entry
page_wait_entry:
    pushfq
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    push %rbp
    push %rbx                   // 16 words, 128 bytes
    cld
    mov %rsp, %rbx
    mov 128(%rbx), %rdi
    sub $4096, %rsp
    and $-64, %rsp
    xor %eax, %eax
    mov %rax, 512(%rsp)
    mov %rax, 520(%rsp)
    mov %rax, 528(%rsp)
    mov %rax, 536(%rsp)
    mov %rax, 544(%rsp)
    mov %rax, 552(%rsp)
    mov %rax, 560(%rsp)
    mov %rax, 568(%rsp)
    mov $0xe7, %eax
    xor %edx, %edx
    xsave64 (%rsp)
    call nacre_wait_for_page
    mov $0xe7, %eax
    xor %edx, %edx
    xrstor64 (%rsp)
    mov %rbx, %rsp
    mov 144(%rbx), %rcx         // interrupted stack pointer; the record lies below what is written here
    mov 136(%rbx), %rdx
    mov %rdx, -136(%rcx)        // rip
    mov 120(%rbx), %rdx
    mov %rdx, -144(%rcx)        // rflags
    mov 112(%rbx), %rdx
    mov %rdx, -152(%rcx)        // rax
    lea -152(%rcx), %rax
    pop %rbx
    pop %rbp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    mov %rax, %rsp
    pop %rax
    popfq
    ret $128

// ---------------------------------------------------------------- ring 3: context switch

// fiber_switch(rdi: where to save the stack pointer, rsi: stack pointer to go to)
.balign 16
.globl fiber_switch
fiber_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    sub $8, %rsp
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    add $8, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret

// First code of a fiber: r12 = argument, r13 = function that never returns.
.globl fiber_start
fiber_start:
    xor %ebp, %ebp
    mov %r12, %rdi
    call *%r13
    ud2
