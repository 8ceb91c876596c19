package health

// Answer and Question are for tests.
var Answer, Question = answer, question
