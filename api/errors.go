package api

import (
	"context"
	"errors"
)

// Code says what kind of failure an Error is. Each has one exit code.
type Code string

// The error codes.
const (
	CodeFailed     Code = "failed"      // exit 1
	CodeInvalid    Code = "invalid"     // exit 2: usage or bad configuration
	CodeNotRunning Code = "not-running" // exit 3
	CodeDegraded   Code = "degraded"    // exit 4
	CodeNotFound   Code = "not-found"   // exit 5
	CodeRefused    Code = "refused"     // exit 6: by policy, or conflicts with what exists
	CodePermission Code = "permission"  // exit 7
	CodeTimeout    Code = "timeout"     // exit 8
)

// ExitCode returns the exit status of a command that ends with this code.
func (c Code) ExitCode() int {
	switch c {
	case CodeInvalid:
		return 2
	case CodeNotRunning:
		return 3
	case CodeDegraded:
		return 4
	case CodeNotFound:
		return 5
	case CodeRefused:
		return 6
	case CodePermission:
		return 7
	case CodeTimeout:
		return 8
	default:
		return 1
	}
}

// Error is a failure that crosses the socket. Implementations of the server
// interfaces return it to choose the code; any other error becomes CodeFailed.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`       // what and why
	Fix     string `json:"fix,omitempty"` // the command that fixes it
	Err     error  `json:"-"`             // cause, on the side where it arose
}

// Error implements error. The fix is not part of it: callers show it on a
// line of its own.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// NewError makes an Error from its code, message and fix.
func NewError(code Code, message, fix string) *Error {
	return &Error{Code: code, Message: message, Fix: fix}
}

// CodeOf returns the code of the first *Error in err's chain, CodeTimeout if
// a deadline passed, else CodeFailed.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return CodeTimeout
	}
	return CodeFailed
}
