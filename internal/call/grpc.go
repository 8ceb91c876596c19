package call

import "net/http"

// Statuses of gRPC (doc/statuscodes.md of gRPC) that a proxy gives.
const (
	GRPCCancelled         = 1
	GRPCUnknown           = 2
	GRPCDeadlineExceeded  = 4
	GRPCPermissionDenied  = 7
	GRPCResourceExhausted = 8
	GRPCUnimplemented     = 12
	GRPCInternal          = 13
	GRPCUnavailable       = 14
	GRPCUnauthenticated   = 16
)

// Answer is how the caller of r is told of a refusal or failure with that HTTP
// status: as it is, or, for gRPC, as 200 with the status of gRPC that its clients
// would make of it (doc/http-grpc-status-mapping.md of gRPC).
func (r *Request) Answer(status int) (code int, grpc *int) {
	if !r.GRPC {
		return status, nil
	}
	s := grpcStatus(status)
	return http.StatusOK, &s
}

func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest:
		return GRPCInternal
	case http.StatusUnauthorized:
		return GRPCUnauthenticated
	case http.StatusForbidden:
		return GRPCPermissionDenied
	case http.StatusNotFound, http.StatusNotImplemented:
		return GRPCUnimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return GRPCUnavailable
	}
	return GRPCUnknown
}
