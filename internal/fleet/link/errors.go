package link

import (
	"encoding/json"
	"errors"

	"github.com/parleymesh/parley/internal/fault"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Status is err as gRPC carries it, with the faults that a person may know. Of any
// other error the peer learns only that there was one.
func Status(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	faults := fault.All(err)
	if len(faults) == 0 {
		return status.Error(codes.Internal, "the server failed")
	}
	text, jsonErr := json.Marshal(faults)
	if jsonErr != nil {
		return status.Error(codes.Internal, "the server failed")
	}
	return status.Error(codes.FailedPrecondition, string(text))
}

// fromStatus turns what Status made into the faults again.
func fromStatus(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	if s.Code() == codes.FailedPrecondition {
		var faults fault.List
		if json.Unmarshal([]byte(s.Message()), &faults) == nil && len(faults) > 0 {
			return faults
		}
	}
	if s.Code() == codes.Unimplemented {
		return errors.Join(errors.ErrUnsupported, errors.New(s.Message()))
	}
	if s.Code() == codes.Unavailable || s.Code() == codes.DeadlineExceeded {
		return errors.Join(ErrUnreachable, errors.New(s.Message()))
	}
	return err
}

// ErrUnreachable says that no server answers.
var ErrUnreachable = errors.New("no server answers")
